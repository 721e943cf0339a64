"""The proposal convolution on a GPU: by the library, by gathering in Triton, or through spectra of tiles."""
