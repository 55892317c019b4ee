"A chart as the picture that one sees."

import io

from PIL import Image


def picture(chart) -> Image.Image:
    out = io.BytesIO()
    chart.save(out, format="png")
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")
