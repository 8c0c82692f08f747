"""Every method with its presets, its published weights and their names."""
