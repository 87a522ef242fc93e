"""What the example scripts share: data, augmentation, arguments and the Trainer."""
