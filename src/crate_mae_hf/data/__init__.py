"""Images: from the Hub, folders or streams, with labels or without, augmented, masked."""
