"""Pictures and tables of what was selected; nothing here computes features or variances."""
