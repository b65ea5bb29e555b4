"""What a trained model sees in images: `vitgraft predict`."""
