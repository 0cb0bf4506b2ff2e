"""Names of the files in a training run's folder; apart, so that a finished run is seen without importing torch."""

BEST_FILE = "model_best.safetensors"
DONE_FILE = "curves.png"  # written last
RUN_FILES = ("history.csv", DONE_FILE, BEST_FILE, "last.pt")
