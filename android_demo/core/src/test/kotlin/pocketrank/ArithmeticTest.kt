package pocketrank

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import pocketrank.Dump.double
import pocketrank.Dump.ints
import pocketrank.Dump.list
import pocketrank.Dump.long
import pocketrank.Dump.longs
import pocketrank.Dump.map
import pocketrank.Dump.text

/** Segmentation, int8 vectors, merges, slots and item memory, held against what the Python side made of the same. */
class ArithmeticTest {
    @Test
    fun `every policy cuts every log as the server does, event by event and at every clock`() {
        val kinds = HashSet<String>()
        for (case in Dump.cases("cuts.json")) {
            val name = case.text("name")
            val policy = Policy.of(case.map("policy")).also { kinds.add(it.kind) }
            val names = case.list("behaviors")
            val behavior = case.ints("behavior").map { names[it] as String }
            val timeUs = case.longs("time_us")
            val cuts = cut(policy, case.longs("recent_us"), timeUs, behavior::get)
            assertEquals(case.ints("first").asList(), cuts.map { it.first }, name)
            assertEquals(case.ints("end").asList(), cuts.map { it.end }, name)
            assertEquals(case.list("closed_at_us"), cuts.map { moment(it.closedAtUs) }, name)
            assertEquals(case.list("closed"), cuts.map { it.closed }, name)
            case.longs("clock_us").zip(case.longs("closed_by_clock")).forEach { (nowUs, count) ->
                assertEquals(count, cuts.count { it.isClosedBy(nowUs) }.toLong(), "$name at $nowUs")
            }
            val open = Cutting(policy, case.longs("recent_us"))
            val steps = case.map("steps")
            timeUs.forEachIndexed { place, time ->
                open.step(time, behavior[place])
                val found = listOf(open.events, open.closed, moment(open.closedAtUs))
                assertEquals(listOf("n_events", "closed", "closed_at_us").map { steps.list(it)[place] }, found, "$name $place")
            }
        }
        assertEquals(setOf("session_gap", "fixed_window", "fixed_count", "milestone", "adaptive"), kinds)
    }

    private fun moment(timeUs: Long): Long? = timeUs.takeIf { it < NEVER_US }

    @Test
    fun `vectors are rounded to the last bit as the server rounds them`() {
        val file = Dump.tensors("quantiser.safetensors")
        val width = file["x"][1]
        val found = quantise(file["x"].floatArray(), width)
        assertArrayEquals(file["vectors"].byteArray(), found.vectors)
        assertArrayEquals(file["scales"].floatArray(), found.scales)
        val back = FloatArray(found.vectors.size) { found.vectors[it] * found.scales[it / width] }
        assertArrayEquals(file["back"].floatArray(), back)
    }

    @Test
    fun `every merge is the server's to the last bit`() {
        val file = Dump.tensors("merges.safetensors")
        val (older, newer, wanted) = listOf("older", "newer", "merged").map { Dump.segments(file, it) }
        assertTrue(wanted.size > 40)
        for (place in wanted.indices) assertSame(wanted[place], older[place].merged(newer[place], 1), "merge $place")
    }

    @Test
    fun `slots hold what the server's hold, whether a phone starts over or goes on`() {
        for (case in Dump.cases("compaction.json")) {
            val compaction = Compaction.of(case, case.long("slots").toInt())
            val file = Dump.tensors(case.text("file"))
            val new = Dump.segments(file, "new")
            var held = emptyList<Segment>()
            var done = 0
            for (count in case.ints("closed")) {
                held = compaction.close(held, new.subList(done, count))
                done = count
                val wanted = Dump.segments(file, "kept_$count")
                assertTrue(compaction.fits(wanted), "${case["file"]} $count")
                assertFalse(compaction.fits(wanted + List(compaction.slots + 1) { new[0] }), "${case["file"]} $count")
                for (kept in listOf(held, compaction.close(emptyList(), new.subList(0, count)))) {
                    assertEquals(wanted.size, kept.size, "${case["file"]} $count")
                    wanted.zip(kept).forEach { (a, b) -> assertSame(a, b, "${case["file"]} $count") }
                }
            }
            assertEquals(new.size, done)
        }
    }

    private fun assertSame(wanted: Segment, found: Segment, where: String) {
        assertArrayEquals(wanted.vectors, found.vectors, where)
        assertArrayEquals(wanted.scales, found.scales, where)
        assertArrayEquals(wanted.topItems, found.topItems, where)
        val columns = { one: Segment ->
            listOf(one.startUs, one.endUs, one.weight, one.events, one.ordinalFirst, one.ordinalLast, one.level)
        }
        assertEquals(columns(wanted), columns(found), where)
    }

    @Test
    fun `the item memory is the server's`() {
        for (case in Dump.cases("memory.json")) {
            val name = case.text("name")
            val halfLifeS = case.double("half_life_s")
            val before = case["before"]?.let { memory(case.map("before")) } ?: ItemMemory.NONE
            val found = before.after(case.ints("rows"), case.longs("time_us"), halfLifeS)
            val wanted = memory(case.map("after"))
            assertArrayEquals(wanted.items, found.items, name)
            assertArrayEquals(wanted.counts, found.counts, name)
            assertArrayEquals(wanted.firstS, found.firstS, name)
            assertArrayEquals(wanted.lastS, found.lastS, name)
            wanted.decayed.zip(found.decayed).forEach { (a, b) -> assertEquals(a, b, 1e-12 * a, name) }
            case.longs("now_s").zip(case.list("features")).forEach { (nowS, rows) ->
                case.ints("asked").zip(rows as List<*>).forEach { (row, numbers) ->
                    val four = FloatArray(4)
                    found.place(row).takeIf { it >= 0 }?.let { found.features(it, nowS, halfLifeS, four, 0) }
                    (numbers as List<*>).map(Dump::number).forEachIndexed { at, number ->
                        assertEquals(number, four[at].toDouble(), 2e-7 * Math.abs(number), "$name $row at $nowS")
                    }
                }
            }
        }
    }

    private fun memory(told: Map<String, Any?>): ItemMemory {
        fun doubles(name: String) = told.list(name).map(Dump::number).toDoubleArray()
        return ItemMemory(
            told.ints("items"), doubles("counts"), doubles("decayed"), told.longs("first_s"), told.longs("last_s"),
        )
    }
}
