"""What goes out from a queue to other services, each module with an extra of its own. Nothing of creche imports it."""
