"""What the live panel costs."""
