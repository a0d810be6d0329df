"""Kernels of a GPU's program: their kinds, parts, numbers and bytes, on text written by hand."""

import pytest

from jaxdiff.plan import graphs, hlo
from jaxdiff.plan.kernels import Kernels, kernels

# Each of three rounds of a loop convolves, with a workspace of 99 bytes; the rest runs once.
TEXT = """HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%normed (p: bf16[8,4]) -> f32[4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %wide = f32[8,4]{1,0} convert(%p)
  %zero = f32[] constant(0)
  ROOT %total = f32[4]{0} reduce(%wide, %zero), dimensions={0}, to_apply=%sum
}

%turned (q: f32[2,3]) -> f32[3,2] {
  %q = f32[2,3]{1,0} parameter(0)
  ROOT %t = f32[3,2]{1,0} transpose(%q), dimensions={1,0}, metadata={op_name="jit(step)/transpose(jvp(net))/x"}
}

%moved (old: f32[2,3], new: f32[2,3]) -> f32[2,3] {
  %old = f32[2,3]{1,0} parameter(0)
  %new = f32[2,3]{1,0} parameter(1)
  ROOT %next = f32[2,3]{1,0} add(%old, %new)
}

%body (carry: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %carry = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[8,4]{1,0} get-tuple-element(%carry), index=1
  %y = (bf16[8,4], u8[99]) custom-call(%x, %x), custom_call_target="__cudnn$convForward", metadata={op_name="jvp(net)"}
  %out = bf16[8,4]{1,0} get-tuple-element(%y), index=0
  ROOT %pair = (s32[], bf16[8,4]{1,0}) tuple(%i, %out)
}

%condition (state: (s32[], bf16[8,4])) -> pred[] {
  %state = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x0: bf16[8,4], w: f32[2,3]) -> (f32[4], f32[2,3]) {
  %x0 = bf16[8,4]{1,0} parameter(0)
  %w = f32[2,3]{1,0} parameter(1)
  %start = s32[] constant(0)
  %begin = (s32[], bf16[8,4]{1,0}) tuple(%start, %x0)
  %loop = (s32[], bf16[8,4]) while(%begin), condition=%condition, body=%body, config={"known_trip_count":{"n":"3"}}
  %last = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
  %norm = f32[4]{0} fusion(%last), kind=kInput, calls=%normed, metadata={op_name="jit(step)/jvp(net)/norm"}
  %turn = f32[3,2]{1,0} fusion(%w), kind=kInput, calls=%turned
  %copied = f32[3,2]{0,1} copy(%turn)
  %begun = f32[3,2]{0,1} all-reduce-start(%copied), replica_groups={}, to_apply=%sum
  %sent = f32[3,2]{0,1} all-reduce-done(%begun)
  %back = f32[2,3]{1,0} bitcast(%sent)
  %update = f32[2,3]{1,0} fusion(%w, %back), kind=kLoop, calls=%moved
  ROOT %result = (f32[4]{0}, f32[2,3]{1,0}) tuple(%norm, %update)
}
"""


@pytest.fixture(scope="module")
def found():
    return {each.kind: each for each in kernels(hlo.parse(TEXT))}


@pytest.mark.parametrize(
    "wanted",
    [
        Kernels("cuDNN convolution", "forward", 3, 3 * 2 * 64, 3 * 64),  # the workspace is no result
        Kernels("reduction", "forward", 1, 64, 16),
        Kernels("transpose", "backward", 1, 24, 24),  # the part's name is within the fusion
        Kernels("copy", "rest", 1, 24, 24),
        Kernels("collective", "rest", 1, 24, 24),
        Kernels("elementwise", "rest", 1, 48, 24),
    ],
    ids=lambda wanted: wanted.kind,
)
def test_kinds_parts_launches_and_bytes(found, wanted):
    assert found[wanted.kind] == wanted


def test_nothing_else_is_launched(found):
    assert len(found) == 6


THUNKS = """000: kCommandBuffer [source       | next=003 (1)]
    001: kCustomKernel [source       | next=002 (1)] loop_add_fusion grid: [1, 1, 1] threads: [8, 1, 1]
    002: kCopy         [prev=001 (1) | sink        ] kCopy
003: kWhile         [prev=000 (1) | sink        ]
condition:
    004: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer [source        | next=008 (1)]
        005: kCustomKernel [source       | next=006 (6)] wrapped_concatenate grid: [19968, 1, 1]
        006: kCustomKernel [source       | next=007 (1)] input_concatenate_fusion_3 grid: [4, 1, 1]
        007: kCuDnn        [prev=006 (1) | sink        ] kCuDnn
    008: kConvolution   [prev=000 (1)  | next=009 (1)] kConvolution
    009: kConvolution   [prev=008 (1)  | next=010 (1)] kConvolution
    010: kDynamicSliceFusion [prev=009 (1)  | sink        ] params=1, results=1
        011: kCopy [source | sink] kCopy
"""


def test_what_stands_in_cuda_graphs_and_apart():
    assert graphs.parse(THUNKS) == graphs.Graphs(2, 5, {"CustomKernel": 1, "Convolution": 2, "DynamicSliceFusion": 1})
    assert graphs.parse("") == graphs.Graphs(0, 0, {})
