"""What crosses a socket: typed codecs, envelopes, families of messages."""
