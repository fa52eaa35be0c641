"""Friends as the application sees them: contacts and their keys, relations, presence."""
