"""The proposal convolution on a GPU: in the library, by a gathering product in Triton, or through spectra of tiles."""
