package pocketrank

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import pocketrank.Dump.list
import pocketrank.Dump.long
import pocketrank.Dump.text
import java.io.File

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

    private companion object {
        val DETAILS = Regex("\\(.*\\)| with \\{.*\\}", RegexOption.DOT_MATCHES_ALL)
    }
}
