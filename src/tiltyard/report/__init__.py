"""What people read: progress and tables in the terminal, later the HTML report."""
