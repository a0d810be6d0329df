"""Pictures of texts by way of embeddings: `--part prior` or `direct`, and `--part decoder`, each a run of its own."""

from dataclasses import replace
from typing import Any, Literal

from jax.sharding import Mesh

import jaxdiff as jd
from jaxdiff import conditions, data, models, networks, train, training, unclip
from jaxdiff.experiment import Experiment, Sampling, compute_dtype
from jaxdiff.options import CondDropout, Count, Decay, File, Run, Source, refuse_unused


def experiment(
    image_text: File,
    part: Literal["prior", "direct", "decoder"] = "decoder",
    prior: File = "",
    run: Run = Run(steps=1500, batch=32, lr=8e-3, preview_every=500),
    width: Count = 32,
    cond_dropout: CondDropout = 0.1,
    ema: Decay = 0.995,
    source: Source = "compositions:core",
    mesh: Mesh | None = None,
) -> Experiment:
    """unCLIP (Ramesh et al. 2022, arXiv:2204.06125), of the embeddings of a run of image_text.py.

    Args:
        image_text: folder of the image-text model.
        part: the diffusion prior from texts to embeddings, a direct one by regression, or the decoder.
        prior: folder of the prior of a decoder's prompts; `jaxdiff sample --prior` names another one.
        width: channels at the decoder's first level; an eighth of a prior's units in a layer.
        mesh: where parameters that are read lie; None is the default device.
    """
    unused = {"decoder": {}, "prior": {"prior": prior}, "direct": {"prior": prior, "cond_dropout": cond_dropout}}
    refuse_unused(experiment, f"--part {part}", **unused[part])
    embedder = unclip.load_embedder(image_text, mesh)
    pictures, encode = data.open_dataset(source, captions=True), embedder.model.vocabulary.tokenize
    pairs = data.pairs_of(pictures, 20 if part == "decoder" else 1000)
    process, velocity = jd.processes.Flow(), jd.parameterize.velocity
    options: Any = {"times": jd.times.stratified(), "cond_dropout": cond_dropout}
    sampling: Any = Sampling(lambda n: jd.grids.by_time(process, n), jd.solvers.dpmpp_2m(), steps=16)
    if part == "decoder":
        given = unclip.load_prior(prior, image_text, mesh) if prior else None
        condition = unclip.of_embeddings(embedder, pairs, given)
        unet = networks.UNet(
            widths=(width, 2 * width, 3 * width), num_blocks=1, attention=(2,), resample="pool", groups=8, patch_size=2,
            scale_shift=True, head_dim=width, context_dim=embedder.width, pooled_dim=embedder.width,
            dtype=compute_dtype(),
        )  # fmt: skip
        model, of_embedding = unclip.decoder(unet, process, velocity, embedder, given)
        null = {"embedding": condition.null["embedding"]}
        loss = jd.losses.denoising_loss(of_embedding, process, model.prediction, null_cond=null, **options)
        learned, sampling = conditions.none(), replace(sampling, guidance=2.0)
        medium = models.picture_medium(pictures, source)
    else:
        condition = learned = unclip.of_texts(embedder, pairs)
        mlp, medium = networks.MLP(width=8 * width, pooled_dim=embedder.width), unclip.prior_medium(embedder, pairs)
        if part == "prior":
            model = unclip.prior(mlp, process, embedder)
            apply, prediction = condition.encoded(model.apply), model.prediction
            loss = jd.losses.denoising_loss(apply, process, prediction, null_cond=condition.null, **options)
        else:
            (model, loss), sampling = unclip.direct_prior(mlp, condition, embedder), None
    optimizer = train.muon(run.lr, warmup_steps=min(50, run.steps // 10), steps=run.steps, schedule="cosine")
    learning = training.of(
        run, pictures, learned, loss=loss, optimizer=optimizer, ema=train.ema.warmup(ema),
        encode=None if part == "decoder" else encode,
        of_batches=lambda loss: unclip.embedded_loss(loss, embedder, into="embedding" if part == "decoder" else "x"),
    )  # fmt: skip
    return Experiment(model, learning, sampling, condition, medium, run.seed)
