"""The main job: learn a text character by character. What becomes of it on disk is not its business."""
