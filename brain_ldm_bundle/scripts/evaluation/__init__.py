"""How good are reconstructions, volumes and models? Nothing else imports this room."""
