"""What a kind of pipeline asks of its network's config."""

import pytest

from jaxdiff.text_to_image.prompts import LAYOUTS


def test_a_pipeline_asks_its_network_s_config():
    layout = LAYOUTS["StableDiffusionXLPipeline"]
    held = {"in_channels": 4, "out_channels": 4, "addition_time_embed_dim": 256}
    layout.check(held | {"projection_class_embeddings_input_dim": 2816})
    for value in ({}, {"projection_class_embeddings_input_dim": None}):
        with pytest.raises(ValueError, match="config of unet must give projection_class_embeddings_input_dim"):
            layout.check(held | value)
