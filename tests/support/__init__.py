"""What several tests build on; nothing of it is shipped."""
