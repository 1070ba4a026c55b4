"""DOTA: images, labels, tiles, and the official evaluation. Images go by their names without suffix.

AP of your own detections, in memory and as the files of any detector:

    >>> from rgfl.detections import Detections
    >>> from rgfl.dota.average_precision import evaluate, evaluate_detections
    >>> from rgfl.dota.labels import read_label_folder, read_task1, write_submission, write_task1
    >>> classes = ("plane", "ship")
    >>> truth = read_label_folder("val/labelTxt", classes)
    >>> found = {"P0001": Detections(boxes=[[60, 50, 40, 20, 0.5]], scores=[0.9], labels=[0])}
    >>> result = evaluate_detections(found, truth, classes)  # .table() prints it
    >>> write_task1("results", found, classes)  # Task1_plane.txt, Task1_ship.txt
    >>> evaluate(read_task1("results", classes), truth, classes).ap50 == result.ap50
    True
    >>> write_submission("Task1.zip", found, classes)  # what the DOTA server takes

Any detector on an image of any size, and the merging alone:

    >>> from rgfl.dota.images import read_image
    >>> from rgfl.dota.merge import Part, detect, merge
    >>> def infer(tiles):  # uint8 RGB (B, 1024, 1024, 3) to one record a tile, in its pixels
    ...     return [Detections([[500, 500, 40, 20, 0.5]], [0.9], [0]) for _ in tiles]
    >>> len(detect(read_image("scene.tif"), infer, size=1024))  # 1848 × 1024 pixels: two tiles
    2
    >>> part = Part(found["P0001"], x=824, y=0)  # a tile and its upper left corner in the image
    >>> merge([part]).boxes.tolist()
    [[884.0, 50.0, 40.0, 20.0, 0.5]]

`python -m rgfl.dota.tiling`, `.convert`, `.merge` and `.synthetic` are commands.
"""
