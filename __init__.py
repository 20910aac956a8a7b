"""MMaDA-Parallel for ComfyUI: a reasoning text and an image, denoised in parallel."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI (>= 0.16) when it loads the pack."""
    from .nodes import MMaDAParallelExtension

    return MMaDAParallelExtension()
