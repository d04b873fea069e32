"""What leaves this machine: models for the hub, and exports for other programs."""
