package pocketrank.ort

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import pocketrank.Dump
import pocketrank.FileStorage
import pocketrank.ItemId
import pocketrank.PinnedKey
import pocketrank.Ranker
import java.io.File
import java.security.KeyPairGenerator
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.util.Base64

/** The code in README.md, as it stands there: tests/android holds the two equal. */
class ReadmeTest {
    @Test
    fun `the code runs`(@TempDir files: File) {
        val bundle = File(files, "bundle").also { File(Dump.folder, "bundles/mean").copyRecursively(it) }
        val keys = KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }.generateKeyPair()
        val spki = Base64.getEncoder().encodeToString(keys.public.encoded)
        val pem = "-----BEGIN PUBLIC KEY-----\n$spki\n-----END PUBLIC KEY-----\n"
        Signature.getInstance("SHA256withECDSA").run {
            initSign(keys.private)
            update(File(bundle, "manifest.json").readBytes())
            File(bundle, "manifest.sig").writeBytes(sign())
        }
        val pack = File(Dump.folder, "rankings/mean/full.safetensors").readBytes()
        val storage = FileStorage(File(files, "user-7")) // one at a time has a folder open
        val ranker = Ranker.open(bundle, OrtEngine(), storage, PinnedKey.ofPem(pem))
        ranker.load(pack, "pack 7") // bytes that the app synced; refused, with the reason, where they do not fit
        ranker.observe(ItemId.of("p-17"), "click") // is on disk when this returns
        for (hit in ranker.rank(k = 10).hits) { // or rank(10, ids), or rank(10, ranker.prepare(ids))
            println("${hit.item} ${hit.score} ${hit.reasons}") // reasons are worked out when asked for
        }
        ranker.close()
        storage.close() // a ranker leaves it open: a new bundle is a new ranker over the same storage
        assertEquals(listOf(ItemId.of("p-17")), FileStorage(File(files, "user-7")).use { it.events.map { event -> event.item } })
    }
}
