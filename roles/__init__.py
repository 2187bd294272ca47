"""The components of a box, one package each: settings, tasks, checks. A role never imports another role."""
