"""The template room: messages to text to token ids, with the labels that carry loss. One rendering function for training and serving."""
