"""What an application gets: messages, events, and the readers that it takes events from."""
