"""rgfl: oriented detection on aerial imagery, from DOTA labels to a TensorRT engine.

Importing this package loads neither torch nor the compiled core; each module says what it needs.

As a library it takes NumPy arrays, lists and CPU tensors, and gives NumPy arrays. Boxes are rows
`cx, cy, w, h, θ` in pixels and radians, drawn in rgfl.boxes, which makes them of others:

    >>> from rgfl.boxes import canonical, from_opencv, from_quads, to_quads
    >>> canonical([[2, 1, 2, 4, 0]]).round(2).tolist()  # any radians: le90, le135, mmrotate's oc
    [[2.0, 1.0, 4.0, 2.0, 1.57]]
    >>> from_opencv([[2, 1, 2, 4, 90]]).tolist()  # degrees: cv2.minAreaRect
    [[2.0, 1.0, 4.0, 2.0, 0.0]]
    >>> from_quads([[0, 0, 4, 0, 4, 2, 0, 2]]).tolist()  # corners, as DOTA labels them
    [[2.0, 1.0, 4.0, 2.0, 0.0]]
    >>> to_quads([[2, 1, 4, 2, 0]]).tolist()
    [[0.0, 0.0, 4.0, 0.0, 4.0, 2.0, 0.0, 2.0]]

Rotated IoU, of quads too, and NMS; what was found in an image:

    >>> from rgfl.geometry import quad_iou, rotated_iou, rotated_nms
    >>> boxes, scores = [[2, 1, 4, 2, 0], [3, 1, 4, 2, 0], [9, 1, 4, 2, 0]], [0.7, 0.9, 0.8]
    >>> rotated_iou(boxes, boxes[:1]).tolist()
    [[1.0], [0.6], [0.0]]
    >>> quad_iou(to_quads(boxes), to_quads(boxes[:1])).tolist()
    [[1.0], [0.6], [0.0]]
    >>> rotated_nms(boxes, scores, 0.1).tolist()
    [1, 2]
    >>> from rgfl.detections import Detections
    >>> len(Detections(boxes, scores, labels=[0, 0, 0]))
    3

rgfl.dota has labels, tiles and the official evaluation, rgfl.trt_runtime.runners.load_runner runs a model on
scenes of any size.
"""

__version__ = "0.1.0"
