"""What an index usually says, so that the text coder has seen it before: words of the meta, then the indices of four networks.

A change of it is a new version of the format; `device/nxt.h` holds the same.
"""

WORDS = (
    b'{"args":{"in_features":64,"out_features":10,"bias":true},"kind":"Linear","sizes":{"in_channels":16,"out_channels":32,"gr'
    b'oups":1,"num_features":32},"tensors":["weight","bias"],"input":8,"same":{"weight_hh_l0"},["affine",8,"group",64],{"edits'
    b'":[{"coded":{"bias":["affine",8,"tensor"]},"path":"features.0"},{"path":"fc"}]}'
)
LINEAR = (
    b"\x08fc1.coded.weight.codes\0fc1.coded.weight.codebook\0fc1.coded.bias.codes\0fc1.coded.bias.scale\0fc2.coded.weight.code"
    b's\0fc2.coded.weight.codebook\0fc2.coded.bias.codes\0fc2.coded.bias.scale\0\x8a\x01{"edits":[{"coded":{"bias":["affine",8'
    b',"tensor"]},"path":"fc1"},{"coded":{"bias":["affine",8,"tensor"]},"path":"fc2"}],"grid":["table",4]}\x04\x01\x10\x02\0'
    b"\x09\0\x01\x01\x01\xff\x01\x01\0\x0a\0\x01\x02\0\x01\x02\x03\0\x01\x02\x03\x81\x01\x91\x06\x11\x81\x01\x02\x0b\x81\x01"
    b"\x11\x0b\x02"
)
TRANSFORMER = (
    b"\x13layers.0.self_attn.in_proj_bias\0layers.0.self_attn.out_proj.bias\0layers.0.self_attn.out_proj.coded.weight.codes\0l"
    b"ayers.0.self_attn.out_proj.coded.weight.scale\0layers.0.self_attn.coded.in_proj_weight.codes\0layers.0.self_attn.coded.i"
    b"n_proj_weight.scale\0layers.0.linear1.bias\0layers.0.linear1.coded.weight.codes\0layers.0.linear1.coded.weight.scale\0la"
    b"yers.0.linear2.bias\0layers.0.linear2.coded.weight.codes\0layers.0.linear2.coded.weight.scale\0layers.0.norm1.weight\0la"
    b"yers.0.norm1.bias\0layers.0.norm2.weight\0layers.0.norm2.bias\0classifier.bias\0classifier.coded.weight.codes\0classifie"
    b'r.coded.weight.scale\0*{"edits":[],"grid":["affine",4,"channel"]}\x05\x0a\0\x01\x01\x0a\0\x01\x02\x01\x0f\x02\0\x0a\0'
    b"\x01\x03\x0a\0\x01\x04\0\x01\x02\x03\x02\x03\x01\x02\x03\x01\x02\x03\x04\x01\x04\x01\x01\x02\x03\xc1\x01A\0\0\0\xc1\x01"
    b"\0\0\x81\x01\0A\0A\0\x81\x01\0\0\0\0\0\x0b\0A\0"
)
CONVOLUTIONS = (
    b"\x1fconv1.coded.weight.codes\0conv1.coded.weight.codebook\0bn1.weight\0bn1.bias\0bn1.running_mean\0bn1.running_var\0bn1."
    b"num_batches_tracked\0layer1.0.conv1.coded.weight.codes\0layer1.0.conv1.coded.weight.codebook\0layer1.0.bn1.weight\0layer"
    b"1.0.bn1.bias\0layer1.0.bn1.running_mean\0layer1.0.bn1.running_var\0layer1.0.bn1.num_batches_tracked\0layer1.0.conv2.code"
    b"d.weight.codes\0layer1.0.conv2.coded.weight.codebook\0layer1.0.bn2.weight\0layer1.0.bn2.bias\0layer1.0.bn2.running_mean"
    b"\0layer1.0.bn2.running_var\0layer1.0.bn2.num_batches_tracked\0layer1.0.downsample.0.coded.weight.codes\0layer1.0.downsam"
    b"ple.0.coded.weight.codebook\0layer1.0.downsample.1.weight\0layer1.0.downsample.1.bias\0layer1.0.downsample.1.running_mea"
    b"n\0layer1.0.downsample.1.running_var\0layer1.0.downsample.1.num_batches_tracked\0fc.bias\0fc.coded.weight.codes\0fc.code"
    b'd.weight.codebook\0\x1f{"edits":[],"grid":["table",4]}\x08\x01\x10\x04\0\x09\0\x01\x01\x0a\0\x01\x02\x0a\0\x01\x03\x0a\0'
    b"\x01\x04\x0a\0\x01\x05\x08\0\0\x06\x01\x10\x02\0\0\x01\x02\x03\x04\x05\x06\0\x01\x02\x03\x04\x05\x06\0\x01\x02\x03\x04"
    b"\x05\x06\0\x01\x02\x03\x04\x05\x06\x03\x07\x01\x11\x04\x04\x04\0\0\0\0\0!\0\x04\x04\x11!\0\0\0\0\0\x04\x04\x11!\0\0\0\0"
    b"\x11\x02\x02\x11!\0\0\0\x0b\0!\x11"
)
RECURRENT = (
    b"\x09rnn.bias_ih_l0\0rnn.bias_hh_l0\0rnn.coded.weight_ih_l0.codes\0rnn.coded.weight_ih_l0.scale\0rnn.coded.weight_hh_l0.c"
    b'odes\0rnn.coded.weight_hh_l0.scale\0fc.bias\0fc.coded.weight.codes\0fc.coded.weight.scale\0*{"edits":[],"grid":["affine"'
    b',4,"channel"]}\x05\x0a\0\x01\x01\x0a\0\x01\x02\x01\x0f\x02\0\x0a\0\x01\x03\x0a\0\x01\x04\0\x01\x02\x03\x02\x03\x04\x02'
    b"\x03\x81\x02\0\0\x1d\0\0A\0\x0b\0A\0"
)
PRIMER = WORDS + LINEAR + TRANSFORMER + CONVOLUTIONS + RECURRENT
