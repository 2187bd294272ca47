"""What tests of a box share: the pytest plugin and the SSH backend that it gives testinfra."""
