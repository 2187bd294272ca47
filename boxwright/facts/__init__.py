"""pyinfra facts: each is one remote command, and a parser that refuses what it does not understand."""
