//! Our image codec against CRIU's own (pycriu).
