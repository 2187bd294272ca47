"""pyinfra building blocks, inventory, lab and command line of boxwright; knows nothing of any one role."""
