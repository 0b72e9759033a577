"""Traffic read from programs: against hand arithmetic on lines as XLA writes them, and on a real step."""

from lsp.train.collectives import Collective, by_kind, collectives

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.2 (input: bf16[768,1152]) -> bf16[384,1152] {
  %all-reduce.9 = bf16[768,1152]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
}

%part (p: f32[]) -> f32[] {
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,2]<=[4], frontend_attributes={chain_id="3"}
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-reduce.1 = (f32[8]{0}, f32[]{:T(128)}) all-reduce(%x, %y), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, to_apply=%add
}

%condition (state: (s32[], f32[8])) -> pred[] {
  ROOT %more = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %while = (s32[], f32[8]{0}) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %f1 = f32[] fusion(%z), kind=kCustom, calls=%part
  %all-gather.2 = bf16[64,32]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,2]<=[4], frontend_attributes={chain_id="3"}
  %f2 = bf16[384,1152]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.2
  %collective-permute-start = (s32[5]{0}, s32[5]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%v), channel_id=4, source_target_pairs={{0,1}}
  %alone = f32[100]{0} all-reduce(%w), channel_id=5, replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %all = f32[16]{0} all-reduce(%w), channel_id=6, replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_bytes_are_those_of_ring_algorithms_as_often_as_a_loop_turns() -> None:
    assert set(collectives(PROGRAM, 4)) == {
        Collective("all-reduce", ((8,), ()), 2, 3, 3 * 2 * (8 * 4 + 4) // 2),
        Collective("all-gather", ((64, 32),), 2, 1, 64 * 32 * 2 // 2),  # one operation in two steps
        Collective("reduce-scatter", ((768, 1152),), 2, 1, 768 * 1152 * 2 // 2),  # a fusion, on a TPU
        Collective("collective-permute", ((5,),), 4, 1, 20),
        Collective(
            "all-reduce", ((16,),), 4, 1, 2 * 64 * 3 // 4
        ),  # over all devices; the one over groups of one is none
    }


def test_kinds_are_summed_the_heaviest_first() -> None:
    rows = by_kind(collectives(PROGRAM, 4))
    assert [row["collective"] for row in rows] == ["reduce-scatter", "all-gather", "all-reduce", "collective-permute"]
    assert rows[2] == {"collective": "all-reduce", "count": 4, "bytes": 108 + 96}
