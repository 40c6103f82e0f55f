"""From a plan to files on disk: templates rendered, written atomically, never over a hand edit."""
