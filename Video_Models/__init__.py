"""Every clip classifier beside the inflated VGG: one file a family, one trainer, one way in for real videos."""
