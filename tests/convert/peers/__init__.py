"""Files as other projects' own code writes them: what is read must be what that project's own network computes."""
