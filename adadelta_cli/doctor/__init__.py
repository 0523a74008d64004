"""`doctor`: try each part of the installation, and find what would disturb a measurement."""
