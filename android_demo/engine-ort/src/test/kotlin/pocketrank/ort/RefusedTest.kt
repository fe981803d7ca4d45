package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Assumptions.assumeTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import pocketrank.BadBundle
import pocketrank.Bundle
import pocketrank.Dump
import pocketrank.Dump.text
import pocketrank.ItemId
import pocketrank.PinnedKey
import pocketrank.Ranker
import java.io.File

/** The bundles of a dump that every client has to refuse, and odd ones that it has to take. */
class RefusedTest {
    private val folder = File(Dump.folder, "refused")

    private fun key(case: Map<String, Any?>) = (case["verify_key"] as String?)?.let { PinnedKey.ofPem(File(folder, it).readText()) }

    @Test
    fun `every spoiled bundle is refused for the reason that the server's runtime gives, and when`() {
        assumeTrue(folder.isDirectory, "this dump has no bundles to refuse")
        val cases = Dump.cases("refused.json").filter { it["is_taken"] == false }
        assertTrue(cases.size > 50)
        val differing = ArrayList<String>()
        for (case in cases) {
            val name = case.text("folder")
            val where = File(folder, name)
            val said = if (case["at"] == "open") {
                assertThrows<BadBundle>(name) { Bundle.open(where, key(case)) }
            } else {
                Bundle.open(where, key(case))
                assertThrows<BadBundle>(name) { ranked(where) }
            }.message!!.replace("$folder/", "")
            assertEquals(1, said.lines().size, said)
            if (reason(said) != reason(case.text("said"))) differing.add("$said\n    ${case.text("said")}")
        }
        assertEquals(emptyList<String>(), differing, differing.joinToString("\n"))
    }

    /** Without what stands in brackets and after "known are": what one's own JSON reader says, and a guess what was meant. */
    private fun reason(said: String): String = said.replace(DETAILS, "")

    private fun ranked(where: File) = Ranker.open(where, OrtEngine()).use { ranker ->
        ranker.observe(ranker.bundle.items.ids[0], atUs = 0)
        ranker.rank(1, nowUs = 1_000_000)
        ranker.rank(1, listOf(ItemId.of("item-01")), nowUs = 1_000_000)
    }

    @Test
    fun `odd bundles that are whole are taken`() {
        assumeTrue(folder.isDirectory, "this dump has no bundles to refuse")
        val taken = Dump.cases("refused.json").filter { it["is_taken"] == true }
        assertTrue(taken.size >= 5)
        for (case in taken) Bundle.open(File(folder, case.text("folder")), key(case))
    }

    private companion object {
        val DETAILS = Regex("\\(.*?\\)(?=[;,]| with | and |$)| with \\{.*?\\}|; (known are|did you mean) .*?(?=; |$)", RegexOption.DOT_MATCHES_ALL)
    }
}
