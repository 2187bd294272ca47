"""pyinfra operations for any pyinfra project. Each has a present and an absent form; a second run changes nothing."""
