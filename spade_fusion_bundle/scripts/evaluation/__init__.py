"""How good are planes, fusion and synthetic training data? Nothing else imports this room."""
