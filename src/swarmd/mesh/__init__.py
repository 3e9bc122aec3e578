"""Who is here: the driver, transports, discovery, SWIM."""
