"""What a training run needs beside its step and its loop."""
