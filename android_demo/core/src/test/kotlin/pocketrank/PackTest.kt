package pocketrank

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import pocketrank.Dump.list
import pocketrank.Dump.long
import pocketrank.Dump.text
import java.io.File
import kotlin.random.Random

class PackTest {
    @Test
    fun `every spoiled pack is refused for the reason that the server's runtime gives`() {
        val refused = Dump.cases("packs.json").filter { it["is_taken"] == false }
        assertTrue(refused.size > 60)
        for (case in refused) {
            val file = case.text("file")
            val said = assertThrows<BadPack>(file) { Pack.read(File(Dump.folder, "packs/$file").readBytes(), file) }.message!!
            assertEquals(reason(case.text("said")), reason(said))
            assertTrue(said.lines().size == 1 && said.length < 500, said)
        }
    }

    /** Without what stands in brackets: what one's own JSON reader says, or how one's own language writes a shape. */
    private fun reason(said: String): String = said.replace(DETAILS, "")

    @Test
    fun `odd packs that are whole are taken`() {
        val taken = Dump.cases("packs.json").filter { it["is_taken"] == true }
        assertTrue(taken.size >= 5)
        for (case in taken) {
            val file = case.text("file")
            val pack = Pack.read(File(Dump.folder, "packs/$file").readBytes(), file)
            assertEquals(case.text("encoder_id"), pack.encoderId, file)
            assertEquals(case.list("version"), listOf(pack.version.generation, pack.version.closedAtUs), file)
            assertEquals(case.list("through"), listOf(pack.through.timeUs, pack.through.events), file)
            assertEquals(case.list("recent_us"), pack.recentUs.asList(), file)
            assertEquals(case.long("segments"), pack.segments.size.toLong(), file)
            assertEquals(case.long("remembered_items"), pack.memory.size.toLong(), file)
        }
    }

    @Test
    fun `a pack spoiled anywhere is refused in a line or read, and nothing else happens`() {
        val random = Random(3)
        val whole = File(Dump.folder, "packs/whole.safetensors").readBytes()
        val header = 8 + whole[0] + 256 * whole[1]
        val words = listOf("0", "-1", "9", "{", "}", "[", "]", ",", "\"", ":", "I8", "F32", "null", "1e9", "9223372036854775807")
        var taken = 0
        repeat(40_000) {
            val content = if (random.nextBoolean()) flipped(whole, header, random) else reworded(whole, header, words, random)
            try {
                val pack = Pack.read(content, "p")
                assertTrue(pack.segments.all { it.scales.all { scale -> scale >= 0 && scale <= MOST } && it.events > 0 })
                taken++
            } catch (error: BadPack) {
                assertTrue(error.message!!.lines().size == 1, error.message)
            }
        }
        assertTrue(taken in 1000..39_000, "$taken taken")
    }

    private fun flipped(whole: ByteArray, header: Int, random: Random): ByteArray = whole.copyOf().also {
        val from = if (random.nextBoolean()) 0 else header
        repeat(1 + random.nextInt(3)) { _ -> it[random.nextInt(from, it.size)] = random.nextInt().toByte() }
    }

    /** A word put into the header in the place of some letters, with a length that fits. */
    private fun reworded(whole: ByteArray, header: Int, words: List<String>, random: Random): ByteArray {
        val at = random.nextInt(8, header)
        val text = whole.copyOfRange(8, at) + words.random(random).toByteArray() +
            whole.copyOfRange(minOf(at + random.nextInt(4), header), header)
        val size = ByteArray(8) { if (it < 4) (text.size shr 8 * it).toByte() else 0 }
        return size + text + whole.copyOfRange(header, whole.size)
    }

    private companion object {
        val DETAILS = Regex("\\(.*?\\)(?=[;,]| with | and |$)| with \\{.*?\\}", RegexOption.DOT_MATCHES_ALL)
    }
}
