"""What can be checked of a workflow file before it runs, one kind of rule per file."""
