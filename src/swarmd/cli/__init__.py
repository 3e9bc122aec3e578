"""What a person types: swarmd and swarmctl."""
