"""The example at the end of each command's ``--help``.

They run in this order in an empty folder, except check-device, which needs a GPU, and convert-weights, which needs
another project's files.
"""

SHAPES = "after the example of make-shapes"
RUN = "after the examples of make-shapes and train"
IMAGE = "data/refshapes/images/refshapes/val_000000.png"

EXAMPLES = {  # command -> (arguments, what they need)
    "doctor": ("doctor --config refshapes_tiny", ""),
    "check-device": ("check-device GPU --train 300 --output gpu.json", "with an NVIDIA GPU"),
    "describe": ("describe --config refshapes_tiny model.fusion.stages=[1,2,3,4]", ""),
    "make-shapes": ("make-shapes --output data/refshapes", ""),
    "check-data": ("check-data --root data/refshapes --dataset refshapes --split-by shapes --tokenizer refshapes",
                   SHAPES),
    "export-data": ("export-data --root data/refshapes --dataset refshapes --split-by shapes --format jsonl "
                    "--output data/shapes.jsonl", SHAPES),
    "import-data": ("import-data --format jsonl data/shapes.jsonl --images data/refshapes/images/refshapes "
                    "--output data/own --vocabulary", "after the example of export-data"),
    "convert-weights": ("convert-weights --config refcoco_swin_b --text bert-base-uncased/ "
                        "--output weights/bert.safetensors", "with Hugging Face's folder bert-base-uncased"),
    "train": ("train --config refshapes_tiny --output runs/first train.minutes=3", SHAPES),
    "plot-run": ("plot-run runs/first --output runs/first/curves.png", RUN),
    "evaluate": ("evaluate --checkpoint runs/first/best.safetensors --split val testA --output runs/first/results.json",
                 RUN),
    "show": ("show --checkpoint runs/first/best.safetensors --split val --output runs/first/pictures", RUN),
    "predict": (f'predict --checkpoint runs/first/best.safetensors --image {IMAGE} --text "bottom left circle" '
                "--output runs/first/prediction", RUN),
    "web": ("web --model refshapes --port 7860", "with the extra [web]"),
    "export": ("export --checkpoint runs/first/best.safetensors --output runs/first/coupalign.mindir", RUN),
}


def epilog(command: str) -> str:
    """The lines below a command's help."""
    if command not in EXAMPLES:  # a test's own command
        return ""
    arguments, needs = EXAMPLES[command]
    return f"example{f' ({needs})' if needs else ''}:\n  python -m mindspore_coupalign {arguments}"
