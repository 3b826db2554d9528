"""The main job: learn a text character by character. Knows no disk."""
