package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import pocketrank.BadBundle
import pocketrank.BadKey
import pocketrank.Bundle
import pocketrank.Dump
import pocketrank.ItemId
import pocketrank.PinnedKey
import pocketrank.Ranker
import java.io.File
import java.nio.file.Files
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.MessageDigest
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.util.Base64

/** Bundles that are not whole, not signed, or lie; each changed by hand from one that opens. */
class BundleTest {
    @TempDir
    lateinit var home: File

    private fun bundle(name: String = "bundle"): File =
        File(home, name).also { File(Dump.folder, "bundles/mean").copyRecursively(it, overwrite = true) }

    private fun said(folder: File, key: PinnedKey? = null): String =
        assertThrows<BadBundle> { Ranker.open(folder, OrtEngine(), key = key).close() }.message!!
            .also { assertEquals(1, it.lines().size, it) }
            .replace(folder.path, "bundle")

    private fun File.edit(from: String, to: String) = File(this, "manifest.json").run {
        val text = readText()
        assertTrue(from in text, from)
        writeText(text.replaceFirst(from, to))
    }

    /** Puts other content into a file, and what fits it into the manifest. */
    private fun File.put(name: String, content: ByteArray) {
        val before = File(this, name).readBytes()
        File(this, name).writeBytes(content)
        edit(sha256(before), sha256(content))
        File(this, "manifest.json").run {
            val text = readText()
            val at = text.indexOf("\"size\": ${before.size}", text.indexOf("\"$name\""))
            writeText(text.substring(0, at) + text.substring(at).replaceFirst("${before.size}", "${content.size}"))
        }
    }

    private fun sha256(content: ByteArray) =
        MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }

    private fun keys(curve: String = "secp256r1"): KeyPair =
        KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec(curve)) }.generateKeyPair()

    private fun pem(keys: KeyPair) = "-----BEGIN PUBLIC KEY-----\n" +
        Base64.getMimeEncoder(64, "\n".toByteArray()).encodeToString(keys.public.encoded) + "\n-----END PUBLIC KEY-----\n"

    private fun File.sign(keys: KeyPair) = File(this, "manifest.sig").writeBytes(
        Signature.getInstance("SHA256withECDSA").run {
            initSign(keys.private)
            update(File(this@sign, "manifest.json").readBytes())
            sign()
        },
    )

    @Test
    fun `a folder that is no bundle, and a manifest that is no manifest, say what to do`() {
        val empty = File(home, "bundle").apply { mkdir() }
        assertEquals("bundle: no manifest.json in it, so not a bundle; make one with: pocketrank export", said(empty))
        File(empty, "manifest.json").writeText("{")
        assertTrue(said(empty).startsWith("bundle/manifest.json: not JSON ("))
        File(empty, "manifest.json").writeBytes(ByteArray((1 shl 20) + 1) { ' '.code.toByte() })
        assertEquals(
            "bundle/manifest.json: more than 1048576 bytes, which it never has; fetch or export the bundle again",
            said(empty),
        )
    }

    @Test
    fun `what a manifest says has to be possible`() {
        val edits = listOf(
            Triple("pocketrank.bundle/1", "pocketrank.bundle/2", "format is 'pocketrank.bundle/2', this version reads"),
            Triple("\"least_runtime\": \"0.1.0\"", "\"least_runtime\": \"0.2.0\"", "wants pocketrank 0.2.0 or newer, this is 0.1.0"),
            Triple("\"least_runtime\": \"0.1.0\"", "\"least_runtime\": \"soon\"", "least_runtime: found 'soon', wanted a version"),
            Triple("\"variant\"", "\"colour\"", "unknown key 'colour'"),
            Triple("\"fusion\": \"mean\",", "", "key 'fusion' is missing"),
            Triple("\"S\": 6", "\"S\": 0", "sizes S: found 0, wanted 1 or more"),
            Triple("\"S\": 6", "\"S\": 4000000000", "sizes S x K x D: found 64000000000, wanted at most 4194304"),
            Triple("\"L\": 4", "\"L\": 3", "segments hold up to 4 events, the encoder takes 3"),
            Triple("\"session_gap\"", "\"never\"", "segments: unknown policy 'never'"),
            Triple("\"gap_s\": 1800", "\"gap_s\": 0", "segments: gap_s of session_gap is 0, wanted a positive integer"),
            Triple("\"kind\": \"ring\"", "\"kind\": \"heap\"", "compaction: found 'heap', wanted 'ring' or 'log'"),
            Triple("\"buy\": 3.0", "\"buy\": -3.0", "weights buy: found -3.0, wanted 0 to 1e+12"),
            Triple("604800.0", "0.0", "memory_half_life_s: found 0.0, wanted 1e-06 to 1e+30"),
            Triple("  \"buy\",\n", "  \"view\",\n", "wanted different names, the first for unknown ones"),
            Triple("\"I\": 40", "\"I\": 41", "40 ids and item vectors (40, 8), the manifest says I=41, D=8"),
            Triple("\"score.onnx\"", "\"../score.onnx\"", "names a file '../score.onnx', wanted plain names"),
        )
        for ((from, to, why) in edits) {
            val folder = bundle().apply { edit(from, to) }
            val message = said(folder)
            assertTrue(why in message, "$why\nnot in\n$message")
        }
    }

    @Test
    fun `files have to be those that the manifest names, whole, and no others`() {
        val changes = listOf<Pair<(File) -> Unit, String>>(
            { folder: File -> File(folder, "state.onnx").delete(); Unit } to "bundle/state.onnx: missing, the manifest names it",
            { folder: File -> File(folder, "state.onnx").appendText(" ") } to "bundle/state.onnx: altered: ",
            { folder: File -> File(folder, "state.onnx").run { writeBytes(readBytes().also { it[9]++ }) } } to
                "bundle/state.onnx: altered: sha256 ",
            { folder: File -> File(folder, "more.txt").writeText("") } to "bundle/more.txt: the manifest does not name it",
            { folder: File ->
                File(folder, "state.onnx").run {
                    Files.move(toPath(), File(home, "moved").toPath())
                    Files.createSymbolicLink(toPath(), File(home, "moved").toPath())
                }
                Unit
            } to "bundle/state.onnx: not a regular file",
        )
        for ((change, why) in changes) {
            val folder = bundle("other").also { it.deleteRecursively() }.let { bundle("other") }.also(change)
            val message = said(folder)
            assertTrue(message.startsWith(why), "$why\nis not\n$message")
        }
    }

    private fun rankedIn(folder: File) = Ranker.open(folder, OrtEngine()).use { it.rank(1, listOf(ItemId.of("item-01"))) }

    @Test
    fun `an item table, ids or a graph that lie in files with fitting hashes are refused`() {
        val table = File(Dump.folder, "bundles/mean/items.safetensors").readBytes()
        val nan = table.copyOf().also { content ->
            val header = java.nio.ByteBuffer.wrap(content).order(java.nio.ByteOrder.LITTLE_ENDIAN).getLong(0).toInt()
            for (at in 0 until 4) content[8 + header + at] = 0xff.toByte() // the first bias
        }
        val ids = File(Dump.folder, "bundles/mean/item_ids.json").readText()
        val changes = listOf(
            Triple("items.safetensors", nan, "bias has a value that is not finite or not from -1e+12 to 1e+12"),
            Triple("items.safetensors", table.copyOf(table.size - 1), "not a whole safetensors file"),
            Triple("item_ids.json", ids.replace("item-01", "item-00").toByteArray(), "not a list of different strings or integers"),
            Triple("item_ids.json", "[1,2,3]".toByteArray(), "3 ids and item vectors (40, 8)"),
            Triple("item_ids.json", "[[1]]".toByteArray(), "not a list of different strings or integers (nested deeper than 1)"),
            Triple("state.onnx", "no graph".toByteArray(), "bundle/state.onnx: engine onnx cannot load it ("),
            Triple("score.onnx", File(Dump.folder, "bundles/mean/memory.onnx").readBytes(), "engine onnx cannot run it ("),
        )
        for ((name, content, why) in changes) {
            val folder = bundle().apply { put(name, content) }
            val message = assertThrows<BadBundle>(why) { rankedIn(folder) }.message!!
            assertTrue(why in message.replace(folder.path, "bundle"), "$why\nnot in\n$message")
        }
    }

    @Test
    fun `a signed bundle opens with its key alone`() {
        val folder = bundle()
        val keys = keys()
        val key = PinnedKey.ofPem(pem(keys))
        assertTrue(said(folder, key).startsWith("bundle: not signed, and a key is demanded"))
        folder.sign(keys)
        Bundle.open(folder, key)
        Bundle.open(folder, PinnedKey.ofSpki(keys.public.encoded))
        Bundle.open(folder)
        assertTrue(said(folder, PinnedKey.ofPem(pem(keys()))).startsWith("bundle: the signature does not fit"))
        folder.edit("\"fusion\": \"mean\"", "\"fusion\": \"mena\"")
        assertTrue(said(folder, key).startsWith("bundle: the signature does not fit"))
        for (wrong in listOf(ByteArray(0), ByteArray(70), ByteArray(72) { 0x30 })) {
            File(folder, "manifest.sig").writeBytes(wrong)
            assertTrue(said(folder, key).startsWith("bundle: the signature does not fit"))
        }
        File(folder, "manifest.sig").writeBytes(ByteArray(73))
        assertTrue(said(folder, key).startsWith("bundle/manifest.sig: more than 72 bytes"))
    }

    @Test
    fun `what is no public P-256 key is no key`() {
        val private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        val rsa = KeyPairGenerator.getInstance("RSA").generateKeyPair()
        for (text in listOf("", "no key", private, pem(keys("secp384r1")), pem(rsa), pem(keys()).drop(40))) {
            assertThrows<BadKey>(text) { PinnedKey.ofPem(text) }
        }
    }

    @Test
    fun `onnxruntime writes nothing below the home folder`() {
        Ranker.open(bundle(), OrtEngine()).use { it.rank(3) }
        val written = File(System.getenv("HOME")).walk().filter(File::isFile).toList()
        assertEquals(emptyList<File>(), written)
    }
}
