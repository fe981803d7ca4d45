package pocketrank.demo

import pocketrank.Bundle
import pocketrank.Engine
import pocketrank.FileStorage
import pocketrank.Ranker
import java.io.Closeable
import java.io.File

/**
 * What a user has on this phone, in a folder of theirs, open. Nothing of Android, so that the JVM runs its tests.
 *
 * The pack that the app came with is taken once: who forgot it, or was forgotten, never gets it again.
 *
 * @param shipped that pack, by the user's name; null where there is none.
 */
class Home(folder: File, bundle: Bundle, engine: Engine, shipped: (() -> ByteArray)?) : Closeable {
    val storage = FileStorage(folder)
    val ranker = Ranker(bundle, engine, storage)

    init {
        val taken = File(folder, "shipped.taken") // which `forget` leaves
        if (shipped != null && !taken.exists()) {
            if (storage.pack == null && storage.events.isEmpty()) ranker.load(shipped(), "the app's own pack")
            taken.createNewFile()
        }
    }

    override fun close() {
        ranker.close()
        storage.close()
    }
}
