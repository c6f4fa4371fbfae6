"""Conversations as a model reads them: the shape of messages, chat templates, and text by others that cannot forge control tokens."""
