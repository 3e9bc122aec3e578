/*
 * Preloaded into a daemon (LD_PRELOAD): fsync and fdatasync of files below DISK_FAULT_FOLDER
 * fail with EIO, or take longer, as the file DISK_FAULT_FILE says at that moment:
 *
 *     eio        they fail, and nothing was synced
 *     slow MS    they take MS milliseconds longer
 *
 * Anything else, or no such file: they do what they always do.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int below_folder(int fd)
{
    char link[64], path[PATH_MAX];
    const char *folder = getenv("DISK_FAULT_FOLDER");
    ssize_t length;

    if (folder == NULL)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = '\0';
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int faulty_sync(int fd, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *told = getenv("DISK_FAULT_FILE");
    char word[16] = "";
    int ms = 0;
    FILE *file;

    if (told != NULL && below_folder(fd) && (file = fopen(told, "re")) != NULL) {
        if (fscanf(file, "%15s %d", word, &ms) < 1)
            word[0] = '\0';
        fclose(file);
    }
    if (strcmp(word, "eio") == 0) {
        errno = EIO;
        return -1;
    }
    if (strcmp(word, "slow") == 0)
        usleep((useconds_t)ms * 1000);
    return real(fd);
}

int fsync(int fd)
{
    return faulty_sync(fd, "fsync");
}

int fdatasync(int fd)
{
    return faulty_sync(fd, "fdatasync");
}
