"""An agent that tells everything it knows, in every way there is."""

import base64
import hashlib
import os
import sys
import urllib.parse

NAMES = ("DB_PASSWORD", "TLS_KEY", "PLAIN")


def run(item, context):
    values = {name: os.environ[name] for name in NAMES}
    password, key = values["DB_PASSWORD"], values["TLS_KEY"]
    if item.get("tell"):
        print("the password is", password, "and the key is", key)
        print("encoded", base64.b64encode(f"user:{password}".encode()).decode(), flush=True)
        print(urllib.parse.quote(password, safe=""), password.encode().hex(), repr(key))
        sys.stderr.write("in two parts " + password[:9])
        sys.stderr.flush()
        context.log("between the parts: " + password)
        sys.stderr.write(password[9:] + "\n")
        context.log(f"logged {password}")
        context.progress(1, 2)
    if item.get("raise"):
        raise ValueError(f"cannot log in with {password} and {key}")
    if item.get("crash"):
        print(f"crashing with {password}", flush=True)
        os.abort()
    digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in values.items()}
    return {"digests": digests, "pid": os.getpid(), "others": sorted(set(os.environ) - set(NAMES))}
